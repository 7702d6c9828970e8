"""What leaves say about an attachment, for people. Pure."""

from __future__ import annotations

from metalplane.fabric.v1.switch_pb2 import Attachment


def confirmations(attachment: Attachment) -> str:
    """The leaves and ports that have confirmed."""
    return ", ".join(f"{leaf.switch_id} {leaf.port}" for leaf in attachment.leaves if leaf.confirmed)


def outstanding(attachment: Attachment) -> str:
    """Which leaves have not confirmed, and what they say."""
    waiting = []
    for leaf in attachment.leaves:
        if not leaf.confirmed:
            state = "connected" if leaf.connected else "not connected"
            generations = f"generation {leaf.applied_generation} of {leaf.wanted_generation}"
            former = f"has to let go of {leaf.port}, " if leaf.former else ""
            error = f", {leaf.error}" if leaf.error else ""
            waiting.append(f"{leaf.switch_id} ({former}{state}, {generations}{error})")
    return "waiting for " + "; ".join(waiting) if waiting else "waiting for the leaves"
