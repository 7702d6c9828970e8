"""SQL of fabric, one class an aggregate; every method joins the caller's connection."""

from __future__ import annotations

from metal_fabric.store.attachments import AttachmentStore, FormerLeaf, FormerPlace
from metal_fabric.store.cables import CableStore
from metal_fabric.store.generations import Generation, GenerationStore, Kept, Made
from metal_fabric.store.pins import Pin, PinStore
from metal_fabric.store.reports import FindingStore, ReportStore, Told
from metal_fabric.store.settings import PartitionSettings, SettingsStore
from metal_fabric.store.sources import Source, SourceStore
from metal_fabric.store.switches import SwitchStore
from metal_fabric.store.syncs import Sync, SyncStore
from metal_fabric.store.views import PortUse, SwitchView, ViewStore
from metal_fabric.store.vnis import VniStore

__all__ = [
    "AttachmentStore",
    "CableStore",
    "FindingStore",
    "FormerLeaf",
    "FormerPlace",
    "Generation",
    "GenerationStore",
    "Kept",
    "Made",
    "PartitionSettings",
    "Pin",
    "PinStore",
    "PortUse",
    "ReportStore",
    "SettingsStore",
    "Source",
    "SourceStore",
    "SwitchStore",
    "SwitchView",
    "Sync",
    "SyncStore",
    "Told",
    "ViewStore",
    "VniStore",
]
