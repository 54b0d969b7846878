"""Whether this process has been told to stop and only finishes what it has. Set once, by its server."""

from threading import Event

draining = Event()
