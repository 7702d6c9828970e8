"""Networks, prefixes, IP addresses and number pools (VRF, ASN)."""
