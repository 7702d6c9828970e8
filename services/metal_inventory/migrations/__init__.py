"""Schema steps of inventory, forward only; `metal_kit.migrations` applies them in the order of their numbers."""
