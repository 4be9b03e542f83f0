"""Routes that take the place of MONAI Label's own.

Paths, parameters and replies are the stock ones, so that stock clients work. What differs: handlers
are plain functions, which FastAPI runs beside its event loop; errors are 4xx with a sentence; ids
are looked up and never used as paths; temporary files are safe.
"""
