-- A tenant's projects in the order of the pages.
CREATE INDEX project_tenant ON project (tenant, id);
