"""What runs in the other environment, or in the server, is not collected here."""

collect_ignore = ["app", "offscreen", "serve.py"]
