"""A finished run as a static page that classifies pictures in the browser."""
