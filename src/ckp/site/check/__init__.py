"""What is wrong with a site's hosts and network, found before anything is changed."""
