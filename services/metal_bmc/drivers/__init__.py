"""How BMCs are talked to: one interface, its errors, and a driver on pyghmi that runs in processes of its own."""
