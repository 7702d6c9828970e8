"""What an allocation request has to satisfy before anything is looked up or written. Pure.

Shapes of single fields are checked by the contract's rules; here stand the rules that join fields. Each refusal names
the field and what would be right.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence

from metal_kit.errors import InvalidArgument
from metalplane.allocation.v1.allocation_pb2 import AllocationRole, AllocationSpec, FirewallRule

# OpenSSH's key types (RFC 4253 section 6.6, RFC 8709, PROTOCOL.u2f). ssh-dss is left out: OpenSSH dropped it.
SSH_KEY_TYPES = frozenset(
    {
        "ssh-rsa",
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)


def check(spec: AllocationSpec) -> None:
    """Raise InvalidArgument for the first rule that does not hold."""
    _check_choice(spec)
    for index, key in enumerate(spec.ssh_keys):
        check_ssh_key(key, field=f"spec.ssh_keys[{index}]")
    names = [network.network for network in spec.networks]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidArgument(
                "NETWORK_TWICE", f"network {name} is named twice; name it once", field=f"spec.networks[{index}].network"
            )
    if spec.role != AllocationRole.ALLOCATION_ROLE_FIREWALL and (spec.egress_rules or spec.ingress_rules):
        field = "spec.egress_rules" if spec.egress_rules else "spec.ingress_rules"
        raise InvalidArgument("FIREWALL_ONLY", "firewall rules need the role firewall; leave them out", field=field)
    _check_rules("spec.egress_rules", spec.egress_rules, ingress=False)
    _check_rules("spec.ingress_rules", spec.ingress_rules, ingress=True)


def _check_choice(spec: AllocationSpec) -> None:
    if spec.machine:
        for field in ("partition", "size"):
            if getattr(spec, field):
                raise InvalidArgument(
                    "MACHINE_EXCLUDES",
                    f"a machine named by its UUID has its {field}; leave it out",
                    field=f"spec.{field}",
                )
        return
    for field in ("partition", "size"):
        if not getattr(spec, field):
            raise InvalidArgument("REQUIRED", f"name a {field}, or a machine by its UUID", field=f"spec.{field}")


def check_ssh_key(key: str, *, field: str) -> None:
    """Raise InvalidArgument unless `key` is one public key in authorized_keys form, without options."""
    parts = key.split()
    if len(parts) < 2 or "\n" in key.strip():
        raise InvalidArgument("SSH_KEY", "write one public key: type, base64, optional comment", field=field)
    kind, body = parts[0], parts[1]
    if kind not in SSH_KEY_TYPES:
        raise InvalidArgument("SSH_KEY_TYPE", f"the key type {kind[:64]} is not supported", field=field)
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("SSH_KEY", "the key's base64 part does not decode; paste it again", field=field) from None
    # The blob begins with the key type as a length-prefixed string (RFC 4253 section 6.6): catches truncated pastes.
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != kind.encode():
        raise InvalidArgument("SSH_KEY", f"the key's content is not of type {kind}; paste it again", field=field)


def _check_rules(where: str, rules: Sequence[FirewallRule], *, ingress: bool) -> None:
    for index, rule in enumerate(rules):
        field = f"{where}[{index}]"
        if not ingress and rule.from_prefixes:
            raise InvalidArgument(
                "EGRESS_FROM", "egress rules have no from_prefixes; leave them out", field=f"{field}.from_prefixes"
            )
        families = {ipaddress.ip_network(prefix).version for prefix in (*rule.from_prefixes, *rule.to_prefixes)}
        if len(families) > 1:
            raise InvalidArgument("MIXED_FAMILIES", "one rule is either IPv4 or IPv6; write two", field=field)
