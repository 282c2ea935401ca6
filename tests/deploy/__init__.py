"""Tests of the files with which others run fc7: Dockerfile, Compose files, alerts, dashboard and Helm chart."""
