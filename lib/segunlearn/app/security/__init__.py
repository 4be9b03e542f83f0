"""Who may use the server, and what nobody may do: login, limits, the trail, health.

``protection.protect`` is the one way in; ``segunlearn.app.wiring`` calls it when the server starts.
"""
