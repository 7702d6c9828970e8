"""Redfish (DSP0266) over HTTPS: documents that are not trusted, and sessions that are kept and logged out."""
