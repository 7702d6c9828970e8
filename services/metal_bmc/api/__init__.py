"""BmcService: message ⇄ domain, paging, idempotency. No rules and no SQL."""

from metal_bmc.api.service import BmcApi

__all__ = ["BmcApi"]
