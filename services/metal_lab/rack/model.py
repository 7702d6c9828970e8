"""Rack files: racks, leaves, machines, and what the plane is told about them, as YAML.

A rack file says what stands there, not how it is numbered: MAC addresses, serials, UUIDs and ports follow from names,
so that a lab that is started anew has the same machines. Errors name the file, the place in it and what would be right.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Slug = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Prefix = Annotated[str, Field(max_length=64)]
MAX_MACHINES_A_RACK = 48


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
    loopback: str

    @field_validator("loopback")
    @classmethod
    def _address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))


class Machines(_Part):
    """Some machines of one kind, each on the next free port of both leaves."""

    hardware: Slug
    count: int = Field(1, ge=1, le=MAX_MACHINES_A_RACK)


class Rack(_Part):
    """A rack: two leaves, and machines that hang on both."""

    name: Slug
    leaves: tuple[Leaf, Leaf]
    machines: tuple[Machines, ...] = ()


class Size(_Part):
    """A size as the plane is told: all of a hardware model's figures, exactly."""

    id: Slug
    hardware: Slug
    description: str = ""


class Network(_Part):
    """A network that the operator makes: super, external or underlay."""

    id: Slug
    type: Literal["super", "external", "underlay"]
    prefixes: tuple[Prefix, ...] = Field(min_length=1)
    destination_prefixes: tuple[Prefix, ...] = ()
    default_child_prefix_length: dict[Literal["ipv4", "ipv6"], int] = Field(default_factory=dict)
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
    partition: Slug
    spines: tuple[Slug, ...] = ()
    pxe_vlan: int = Field(4000, ge=2, le=4094)
    dns_servers: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    hardware: dict[Slug, HardwareModel] = Field(min_length=1)
    racks: tuple[Rack, ...] = Field(min_length=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    images: tuple[Image, ...] = Field(min_length=1)
    layouts: tuple[Layout, ...] = Field(min_length=1)
    networks: tuple[Network, ...] = ()

    @model_validator(mode="after")
    def _references(self) -> RackFile:
        leaves = [leaf.name for rack in self.racks for leaf in rack.leaves]
        for what, names in (
            ("leaf", leaves),
            ("rack", [rack.name for rack in self.racks]),
            ("size", [size.id for size in self.sizes]),
            ("network", [network.id for network in self.networks]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]} is named twice; names have to be unique")
        used = [size.hardware for size in self.sizes]
        used += [machines.hardware for rack in self.racks for machines in rack.machines]
        for hardware in used:
            if hardware not in self.hardware:
                known = ", ".join(sorted(self.hardware))
                raise ValueError(f"hardware {hardware} is not described under `hardware` (there: {known})")
        for rack in self.racks:
            count = sum(machines.count for machines in rack.machines)
            if count > MAX_MACHINES_A_RACK:
                raise ValueError(
                    f"rack {rack.name} has {count} machines; a leaf has {MAX_MACHINES_A_RACK} ports for them"
                )
        return self


def load(path: Path) -> RackFile:
    """Read a rack file. Raises RackFileError, naming the file and each place in it that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RackFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RackFileError(f"{path}: is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise RackFileError(f"{path}: has to be a mapping with name, partition, hardware, racks, …")
    try:
        return RackFile.model_validate(content)
    except ValidationError as error:
        raise RackFileError(_explain(path, error)) from None


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: {error.error_count()} mistake(s)"]
    for each in error.errors(include_url=False):
        place = ".".join(str(part) for part in each["loc"]) or "the file"
        lines.append(f"  {place}: {each['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
