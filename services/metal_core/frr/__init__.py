"""FRR's configuration as a model: rendered from the desired state, parsed from the running one, and compared.

`render` builds it, `model` prints it in the form in which FRR prints its own, `parse` reads that form back, `delta`
finds the commands that lead from one to the other. Nothing here runs vtysh; that is `metal_core.vtysh`.
"""
