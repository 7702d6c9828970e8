"""metal-bmc: power, boot device and identify light of machines through their BMCs, one instance a partition.

Owns BMC endpoints, their encrypted credentials, desired power, commands and results. Does not interpret a machine's
lifecycle: it is told what to do and says how it went.
"""
