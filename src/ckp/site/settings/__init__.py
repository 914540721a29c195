"""What a site gives to its hosts beside their work: trusted keys, private CAs, the proxy, name servers and time servers."""
