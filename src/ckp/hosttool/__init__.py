"""The one-file tool for hosts (`ckp-agent`): the agent and the standalone installer."""
