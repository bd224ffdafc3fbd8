"""The generators: captioned scenes to learn from, and real diffusion models run in pieces."""
