"""The page in the browser: what it decides, what it draws with, and how it looks."""
