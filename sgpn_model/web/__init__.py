"""The page that ``sgpn web`` shows in a browser."""
