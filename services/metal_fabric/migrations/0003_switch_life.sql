-- Spines and exits as known devices, and leaves whose box is being replaced.

ALTER TABLE switch
    ADD COLUMN kind text NOT NULL DEFAULT 'leaf' CHECK (kind IN ('leaf', 'spine', 'exit')),
    ADD COLUMN mode text NOT NULL DEFAULT 'operational' CHECK (mode IN ('operational', 'replace')),
    -- Of a device that is no leaf these may not be known: 0.
    DROP CONSTRAINT switch_asn_check,
    DROP CONSTRAINT switch_pxe_vlan_check,
    ADD CHECK (asn BETWEEN CASE WHEN kind = 'leaf' THEN 1 ELSE 0 END AND 4294967295),
    ADD CHECK (CASE WHEN kind = 'leaf' THEN pxe_vlan BETWEEN 1 AND 1000 OR pxe_vlan BETWEEN 2001 AND 4094
                    ELSE pxe_vlan = 0 END);
