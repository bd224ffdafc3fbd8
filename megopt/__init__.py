"""megopt: optimisation and simulation for Mobile Edge Generation (MEG).

An edge server and a phone make an image together with a diffusion model; megopt decides how they share the work.
Importing this package loads nothing heavy: every room is imported by its own name (``from megopt.tables import ...``).
"""

__version__ = "0.1.0"
