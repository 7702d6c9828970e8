"""Where BMCs may be found: the lease files of DHCP servers, and ranges of addresses that somebody named."""
