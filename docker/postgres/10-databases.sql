-- Run once by the Postgres image, when its volume is empty. One database a tool: their schemas never meet,
-- and each can be dumped, moved or dropped without the other.
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
