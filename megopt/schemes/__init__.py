"""How a request can be shared; each scheme compiles a Profile into an ActionTable."""
