"""Rack files: racks, leaves, machines, and what the plane is told about them, as YAML.

A rack file says what stands there, not how it is numbered: MAC addresses, serials, UUIDs and ports follow from names,
so that a lab that is started anew has the same machines. Errors name the file, the place in it and what would be right.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from metal_lab.rack import yaml_file
from metal_lab.rack.check import MAX_MACHINES_A_RACK, mistakes
from metal_lab.rack.explain import explain


def _prefix(text: str) -> str:
    """A prefix in its canonical spelling. Raises ValueError that says what would be right."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        right = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no prefix; one looks like 10.0.0.0/8 or 2001:db8::/48") from None
    raise ValueError(f"{text} has bits set beyond its length; write {right}")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address; one looks like 192.0.2.53 or 2001:db8::53") from None


def _address_v4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is no IPv4 address; a leaf's loopback looks like 10.0.0.11, without a mask"
        ) from None


def _two(leaves: Any) -> Any:
    if isinstance(leaves, list | tuple) and len(leaves) != 2:
        raise ValueError(f"a rack has exactly two leaves, not {len(leaves)}; every machine hangs on both")
    return leaves


Slug = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
# Names that become parts of certificates' URIs, of subjects on the bus, or of ids in the plane that have no dots.
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Address = Annotated[str, AfterValidator(_address)]


MAX_MISTAKES_SHOWN = 20


class RackFileError(Exception):
    """A rack file cannot be used; the text says where and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DiskModel(_Part):
    """A disk of a hardware model. `size_gib` is what it claims; only what is written takes room on the host."""

    device: str = Field(pattern=r"^/dev/[a-z0-9]+$")
    kind: Literal["nvme", "ssd", "hdd"] = "nvme"
    size_gib: float = Field(gt=0, le=100_000)


class HardwareModel(_Part):
    """What machines of one kind are made of."""

    cpu: str = "Intel(R) Xeon(R) D-2141I CPU @ 2.20GHz"
    cores: int = Field(ge=1, le=512)
    memory_gib: int = Field(ge=1, le=65_536)
    disks: tuple[DiskModel, ...] = Field(min_length=1, max_length=64)


class Leaf(_Part):
    """A leaf switch with metal-core on it."""

    name: Slug
    asn: int = Field(ge=1, le=4_294_967_294)
    loopback: Annotated[str, AfterValidator(_address_v4)]


class Machines(_Part):
    """Some machines of one kind, each on the next free port of both leaves."""

    hardware: Slug
    count: int = Field(1, ge=1, le=MAX_MACHINES_A_RACK)


class Rack(_Part):
    """A rack: two leaves, and machines that hang on both."""

    name: Slug
    leaves: Annotated[tuple[Leaf, Leaf], BeforeValidator(_two)]
    machines: tuple[Machines, ...] = ()


class Size(_Part):
    """A size as the plane is told: all of a hardware model's figures, exactly."""

    id: Slug
    hardware: Slug
    description: str = ""


class Network(_Part):
    """A network that the operator makes: super, external or underlay."""

    id: Label
    type: Literal["super", "external", "underlay"]
    prefixes: tuple[Prefix, ...] = Field(min_length=1)
    destination_prefixes: tuple[Prefix, ...] = ()
    default_child_prefix_length: dict[Literal["ipv4", "ipv6"], Annotated[int, Field(ge=1, le=128)]] = Field(
        default_factory=dict
    )
    vrf: int = Field(0, ge=0, le=16_777_215)
    nat: bool = False
    in_partition: bool = True


class Image(_Part):
    """An image; the lab builds its archive."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_-]*-[0-9]+\.[0-9]+(\.[0-9]+)?$")
    features: tuple[Literal["machine", "firewall"], ...] = ("machine",)
    size_mib: float = Field(4, gt=0, le=1024)


class LayoutPartition(_Part):
    """A partition with a file system on it; `size_mib` 0 takes the rest."""

    label: str
    size_mib: int = Field(0, ge=0)
    format: Literal["vfat", "ext4", "swap"] = "ext4"
    mount: str = ""


class Layout(_Part):
    """A filesystem layout: one disk, cut into partitions."""

    id: Slug
    device: str = Field(pattern=r"^/dev/[a-z0-9]+$")
    partitions: tuple[LayoutPartition, ...] = Field(min_length=1)
    sizes: tuple[Slug, ...] = ()
    images: dict[str, str] = Field(default_factory=dict)


class RackFile(_Part):
    """A whole lab."""

    name: Slug
    partition: Label
    spines: tuple[Slug, ...] = Field((), max_length=8)
    pxe_vlan: int = Field(4000, ge=2, le=4094)
    dns_servers: tuple[Address, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    hardware: dict[Slug, HardwareModel] = Field(min_length=1)
    racks: tuple[Rack, ...] = Field(min_length=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    images: tuple[Image, ...] = Field(min_length=1)
    layouts: tuple[Layout, ...] = Field(min_length=1)
    networks: tuple[Network, ...] = ()


def load(path: Path) -> RackFile:
    """Read a rack file. Raises RackFileError, naming the file and each place in it that is wrong."""
    try:
        content = yaml_file.read(path)
    except OSError as error:
        raise RackFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RackFileError(f"{path}: is not YAML that can be read: {_first(error)}") from None
    if content is None:
        raise RackFileError(f"{path}: is empty; begin with a copy of examples/mini-rack.yaml")
    if not isinstance(content, dict):
        raise RackFileError(f"{path}: has to be a mapping with name, partition, hardware, racks, …")
    try:
        file = RackFile.model_validate(content)
    except ValidationError as error:
        raise _refused(path, explain(error, RackFile)) from None
    if found := mistakes(file):
        raise _refused(path, found)
    return file


def _refused(path: Path, found: list[tuple[str, str]]) -> RackFileError:
    lines = [f"{path}: {len(found)} mistake{'s' if len(found) > 1 else ''}"]
    shown = [f"  {place}: {text}" for place, text in found[:MAX_MISTAKES_SHOWN]]
    rest = len(found) - len(shown)
    return RackFileError("\n".join([*lines, *shown, *([f"  … and {rest} more"] if rest else [])]))


def _first(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # YAML's errors go over several lines, with the place in the second.
    return " ".join(str(error).split())[:300]
