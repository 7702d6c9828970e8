-- Lists in the order of their pages, one index a filter.
CREATE INDEX network_type ON network (type, id);
CREATE INDEX network_partition ON network (partition_id, id);
CREATE INDEX network_offered ON network (id) WHERE type IN ('super', 'external') AND project_id = '';
DROP INDEX network_parent;
CREATE INDEX network_parent ON network (parent_id, id);
DROP INDEX prefix_network;
CREATE INDEX prefix_network ON prefix (network_id, cidr);
