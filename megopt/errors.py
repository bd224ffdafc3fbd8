"""Every error that megopt raises on purpose.

    MegoptError                 the user can mend this: the message says where, what came, what was expected, what to do
    ├── ConfigError             an override, a key or a value in the configuration
    ├── ProfileError            a profile folder: missing file or column, a value outside its range
    ├── OutOfTableError         a query outside the range that was measured (nothing is extrapolated)
    ├── SchemeError             a knob of a scheme with a value that it cannot have
    │   └── NotOfferedError     a scheme or a row that the profile does not hold; sweeps note it and go on
    ├── ProblemError            objective and limits that make no sense together
    ├── PipelineError           a diffusion pipeline that lacks a part, or a checkpoint that it cannot go on from
    └── PayloadError            bytes that are not what they claim to be: truncated, damaged, of another version

An infeasible problem is no error: it is a `megopt.solvers.solution.Status`.
"""

from __future__ import annotations


class MegoptError(Exception):
    """Base of all errors whose cause lies in the input; the command line prints them in one line and exits with 2."""


class ConfigError(MegoptError, ValueError):
    """Raised when a configuration key or value is not one that the verb knows."""


class ProfileError(MegoptError, ValueError):
    """Raised when a profile folder or one of its tables breaks the schema."""


class OutOfTableError(MegoptError, LookupError):
    """Raised when a table is asked for a point outside the range it was measured on."""


class SchemeError(MegoptError, ValueError):
    """Raised when a scheme is given a knob value that it, or the profile, cannot have."""


class NotOfferedError(SchemeError):
    """Raised when a profile lacks the rows that a scheme or a policy needs."""


class ProblemError(MegoptError, ValueError):
    """Raised when an objective or a limit names a quantity that the action table does not hold."""


class PipelineError(MegoptError, ValueError):
    """Raised when a diffusion pipeline lacks a part or cannot go on from a given checkpoint."""


class PayloadError(MegoptError, ValueError):
    """Raised when received bytes are truncated, damaged, too large, or of another format or version."""
