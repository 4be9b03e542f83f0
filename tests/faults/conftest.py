"""Import what MONAI Label's roles need once, without the warning that Python gives for it."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'crypt' is deprecated", DeprecationWarning)
    import passlib.context  # noqa: F401
