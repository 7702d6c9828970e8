"""Operating system images: fetched, checked, unpacked."""
