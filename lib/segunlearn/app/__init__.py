"""The only code that knows MONAI Label and FastAPI: the app, its datastores, tasks and routes."""
