"""The configuration of the NATS server: mutual TLS, and a user with a password for each service.

The certificate alone opens nothing here: NATS would take any certificate below the authority, also a machine's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

# Everybody may hear all facts, and the answers to his own requests.
_HEARD = '["metalplane.>", "_INBOX.>"]'
# A service tells facts of its own domain only: one that was broken into must not speak for the others. Of JetStream it
# needs to have the stream made, and consumers; not to delete or purge what is there.
_TOLD = (
    "metalplane.{name}.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.METALPLANE",
    "$JS.API.STREAM.CREATE.METALPLANE",
    "$JS.API.CONSUMER.CREATE.METALPLANE.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.METALPLANE.*",
    "$JS.API.CONSUMER.INFO.METALPLANE.*",
    "$JS.API.CONSUMER.MSG.NEXT.METALPLANE.*",
    "$JS.ACK.METALPLANE.>",
)
# boot only listens for hints (metal_boot.hints). It is the service nearest to the machines.
_LISTENERS = frozenset({"boot"})

_SERVER = """\
# Written by metal-init; changes are overwritten at its next run.
server_name: {name}
listen: {listen}
# For health checks from inside the container; it tells names of connections, and no secrets.
http: {monitor}
jetstream: {{ store_dir: "{store}", max_file_store: 4GB }}
# Holds the plane's greatest event with room to spare.
max_payload: 4MB
tls {{
  cert_file: "{folder}/tls.crt"
  key_file: "{folder}/tls.key"
  ca_file: "{folder}/ca.crt"
  verify: true
}}
authorization {{
  users: [
{users}
  ]
}}
"""


def configuration(passwords: Mapping[str, str], *, listen: str, monitor: str, folder: str, store: str) -> str:
    """Text of the configuration file. `listen` and `monitor` are addresses, `folder` is where the server finds its
    certificate, `store` where it keeps JetStream's files."""
    users = "\n".join(f"    {_user(name, password)}" for name, password in sorted(passwords.items()))
    return _SERVER.format(name="metalplane", listen=listen, monitor=monitor, folder=folder, store=store, users=users)


def _user(name: str, password: str) -> str:
    publish = '{ deny: ">" }' if name in _LISTENERS else json.dumps([subject.format(name=name) for subject in _TOLD])
    return f'{{ user: "{name}", password: "{password}", permissions: {{ publish: {publish}, subscribe: {_HEARD} }} }}'
