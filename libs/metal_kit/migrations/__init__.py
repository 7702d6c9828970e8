"""The kit's own tables, and the runner that brings any schema up to date.

Numbered SQL files `NNNN_name.sql`, forward only, each in a transaction of its own, under an advisory lock, with limits
on locks and statements so that a migration that would block the running service gives up instead. There is no way down:
restoring a backup is.
"""

from __future__ import annotations

from metal_kit.migrations.runner import MigrationError, SchemaTooNew, migrate

__all__ = ["MigrationError", "SchemaTooNew", "migrate"]
