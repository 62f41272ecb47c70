// Package integration tests the built program against real servers: RabbitMQ 3.10 and 4.0, ActiveMQ Classic,
// Artemis and PostgreSQL. It drives `koji-relay serve` as a process of its own, posts golden commits on its
// socket as the hub plugin does, and reads what arrives with clients that share no code with the relay.
//
// It never touches a server that it did not start. Without servers the tests skip, and under make test
// (KOJI_RELAY_REQUIRE_SERVERS=1) they fail. Nothing imports this package.
//
// Environment: KOJI_RELAY_SERVERS is docker, native or none (default: docker where it answers);
// KOJI_RELAY_BINARY is the program (default: built here); KOJI_RELAY_PROTON_PYTHON is a Python that has
// python-proton (default: /usr/bin/python3); KOJI_RELAY_SERVERS_TABLE is a file that gets one line for each
// server used.
package integration
