-- Databases and their users; run once by the Postgres image (its volume is empty then), and at every start by `make stack`.
-- One database a tool: their schemas never meet, and each can be dumped, moved or dropped without the other.
-- One user a service, with its own password: a service that leaks can be locked out alone, and pg_stat_activity names it.
-- The services of Dagster act as the role `dagster`, so that each can use the tables that another has made.
\set ON_ERROR_STOP on
\getenv secrets GEOKR_SECRETS
\set webserver `cat :'secrets'/db_webserver`
\set daemon `cat :'secrets'/db_daemon`
\set code_location `cat :'secrets'/db_code_location`
\set mlflow `cat :'secrets'/db_mlflow`

SELECT format('CREATE ROLE %I NOLOGIN', name) FROM (VALUES ('dagster'), ('mlflow')) AS wanted (name)
  WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
SELECT format('CREATE ROLE %I LOGIN', name)
  FROM (VALUES ('geokr_webserver'), ('geokr_daemon'), ('geokr_code_location'), ('geokr_mlflow')) AS wanted (name)
  WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
  FROM (VALUES ('dagster', 'dagster'), ('mlflow', 'mlflow'), ('mlflow_accounts', 'mlflow')) AS wanted (name, owner)
  WHERE name NOT IN (SELECT datname FROM pg_database) \gexec

REVOKE CONNECT ON DATABASE dagster, mlflow, mlflow_accounts FROM PUBLIC;
GRANT dagster TO geokr_webserver, geokr_daemon, geokr_code_location;
GRANT mlflow TO geokr_mlflow;
ALTER ROLE geokr_webserver SET role = 'dagster';
ALTER ROLE geokr_daemon SET role = 'dagster';
ALTER ROLE geokr_code_location SET role = 'dagster';
ALTER ROLE geokr_mlflow SET role = 'mlflow';
ALTER ROLE geokr_webserver PASSWORD :'webserver';
ALTER ROLE geokr_daemon PASSWORD :'daemon';
ALTER ROLE geokr_code_location PASSWORD :'code_location';
ALTER ROLE geokr_mlflow PASSWORD :'mlflow';
