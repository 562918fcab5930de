"""How requests come in and answers go out; mounting, serving and the end of a mount.

Imports `overlay` and what is below; nothing else imports pyfuse3. Read `operations` first, then
`mount`.
"""
