"""Asks Remit before an agent's tool is called, and calls it only after an allow.

Must never turn a missing, late or unreadable answer into an allow. Nothing here decides.
"""

from ._client import Decision, RemitClient, RemitDenied, RemitError, RemitUnavailable
from ._guard import guard

__all__ = ["Decision", "RemitClient", "RemitDenied", "RemitError", "RemitUnavailable", "guard"]
