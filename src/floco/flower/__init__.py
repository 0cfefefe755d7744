"""The same run across organisations, on Flower: `server_app` and `client_app` for a Flower app (docs/flower.md)."""

from floco.flower.client_app import client_app
from floco.flower.server_app import server_app

__all__ = ["client_app", "server_app"]
