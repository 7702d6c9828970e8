"""What an allocation request has to satisfy before anything is looked up or written. Pure.

Shapes of single fields are checked by the contract's rules; here stand the rules that join fields. Each refusal names
the field and what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from metal_kit.errors import InvalidArgument
from metalplane.allocation.v1.allocation_pb2 import AllocationRole, AllocationSpec, FirewallRule

from metal_allocation.sshkeys import check_ssh_key

# The spec goes along with each event and each page of a list, and one event has to fit the bus.
MAX_SPEC_BYTES = 128 * 1024
MAX_LABEL = 256
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


def check(spec: AllocationSpec) -> None:
    """Raise InvalidArgument for the first rule that does not hold."""
    size = spec.ByteSize() - len(spec.userdata)
    if size > MAX_SPEC_BYTES:
        raise InvalidArgument(
            "SPEC_TOO_LARGE",
            f"has {size} bytes beside the user data, more than {MAX_SPEC_BYTES}; write fewer keys or rules",
            field="spec",
        )
    _check_choice(spec)
    for index, wish in enumerate(spec.networks):
        _check_addresses(wish.ips, field=f"spec.networks[{index}].ips")
    check_labels("spec.labels", spec.labels)
    check_labels("spec.placement_labels", spec.placement_labels)
    for index, key in enumerate(spec.ssh_keys):
        check_ssh_key(key, field=f"spec.ssh_keys[{index}]")
    for index, server in enumerate(spec.dns_servers):
        if not _is_address(server):
            raise InvalidArgument(
                "ADDRESS", "must be an IP address, without a zone", field=f"spec.dns_servers[{index}]"
            )
    for index, server in enumerate(spec.ntp_servers):
        check_server(server, field=f"spec.ntp_servers[{index}]")
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


def _check_addresses(addresses: Sequence[str], *, field: str) -> None:
    """No address twice. The contract sees to that for texts, but an IPv6 address has many."""
    seen = set()
    for number, text in enumerate(addresses):
        at = f"{field}[{number}]"
        if not _is_address(text):
            raise InvalidArgument("ADDRESS", "must be an IP address, without a zone", field=at)
        address = ipaddress.ip_address(text)
        if address in seen:
            raise InvalidArgument("ADDRESS_TWICE", f"{address} is named twice; name it once", field=at)
        seen.add(address)


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        if not key or len(key) > MAX_LABEL or len(value) > MAX_LABEL:
            raise InvalidArgument(
                "LABEL", f"a label has a key and at most {MAX_LABEL} characters on either side", field=field
            )


def check_server(server: str, *, field: str) -> None:
    """Raise InvalidArgument unless `server` is an IP address or a host name (RFC 1123; underscores as DNS has them).

    It ends up in a configuration file of the installed system, where anything else could say something of its own.
    """
    if _is_address(server):
        return
    labels = server.removesuffix(".").split(".")
    if len(server) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise InvalidArgument("HOST_NAME", "must be a host name or an IP address", field=field)


def _is_address(text: str) -> bool:
    """Whether a text is an IP address. One with a zone is none: what follows the percent sign could be anything."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _check_rules(where: str, rules: Sequence[FirewallRule], *, ingress: bool) -> None:
    for index, rule in enumerate(rules):
        field = f"{where}[{index}]"
        if not ingress and rule.from_prefixes:
            raise InvalidArgument(
                "EGRESS_FROM", "egress rules have no from_prefixes; leave them out", field=f"{field}.from_prefixes"
            )
        families = {_family(prefix, field=f"{field}.from_prefixes") for prefix in rule.from_prefixes}
        families |= {_family(prefix, field=f"{field}.to_prefixes") for prefix in rule.to_prefixes}
        if len(families) > 1:
            raise InvalidArgument("MIXED_FAMILIES", "one rule is either IPv4 or IPv6; write two", field=field)


def _family(prefix: str, *, field: str) -> int:
    """IP version of a prefix. The contract lets host bits pass, which in a rule are more likely a slip than a wish."""
    try:
        parsed = ipaddress.ip_network(prefix)
    except ValueError:
        parsed = None
    if parsed is None or "%" in prefix:
        raise InvalidArgument(
            "PREFIX", f"{prefix[:64]} is not a prefix without host bits, such as 10.0.0.0/8", field=field
        )
    return parsed.version
