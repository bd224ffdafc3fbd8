"""The only things that act: Observation -> row of the ActionTable."""
