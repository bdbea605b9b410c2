-- PostgreSQL runs this once, when its volume is empty. The database of Prefect is made by POSTGRES_DB.
CREATE DATABASE mlflow;
