-- Whose a VNI is: two networks in one VRF would see each other.

CREATE TABLE vni_network (
    vni int PRIMARY KEY CHECK (vni BETWEEN 1 AND 16777215),
    -- The network that an attachment last said the number belongs to; it holds while a machine is attached with it.
    network text NOT NULL
);

-- Who is attached with a number.
CREATE INDEX attachment_by_vrf ON attachment (vrf) WHERE vrf <> 0;
CREATE INDEX attachment_by_vni ON attachment USING gin (vnis);
