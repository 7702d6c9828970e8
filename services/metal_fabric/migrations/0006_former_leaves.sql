-- Leaves that machines hung on before they moved to others, until these have let go.

-- The machine's ports there, when it hangs on this leaf no more: then `wanted_generation` is the one without it.
ALTER TABLE attachment_leaf ADD COLUMN former_ports text[];

-- What a leaf has yet to let go of.
CREATE INDEX attachment_leaf_former ON attachment_leaf (switch_id, wanted_generation) WHERE former_ports IS NOT NULL;
