#!/usr/bin/env node
// Prints Koji's messages as they arrive: a start for a consumer of your own, see docs/consumers.md.
//
// It needs Node 18 and rhea (npm ci). It connects again whenever the connection ends, acknowledges a message after
// handle() has finished, and passes over one that it has seen already.
'use strict';
const fs = require('fs');
const { parseArgs } = require('util');
const rhea = require('rhea');

const REMEMBERED = 10000; // message-ids; most repeats come within minutes of the first time

const { values: args } = parseArgs({ options: {
  url: { type: 'string' },                     // amqps://broker.example.com or amqp://...
  address: { type: 'string' },                 // what to receive from, such as topic://koji.build.* (ActiveMQ)
  topic: { type: 'boolean', default: false },  // ask for a topic: Artemis needs it
  durable: { type: 'string' },                 // keep the subscription of this name while away (ActiveMQ, Artemis)
  sasl: { type: 'string', default: 'plain' },  // how to log in: plain, external (client certificate) or anonymous
  user: { type: 'string' },
  'password-file': { type: 'string' },
  cacert: { type: 'string' },                  // authorities, as PEM
  cert: { type: 'string' },                    // client certificate, as PEM; it may hold the key
  key: { type: 'string' },
  json: { type: 'boolean', default: false },   // print all of a message, as one line of JSON
  count: { type: 'string', default: '0' },     // end after so many messages (0 = never)
} });
args.count = Number(args.count);
if (!args.url || !args.address) throw new Error('--url and --address are needed');

// handle is where your own work goes. Finish it before you return: the broker then forgets the message.
async function handle(topic, message, body) {
  if (args.json) {
    console.log(JSON.stringify({ message_id: message.message_id, address: topic, props: message.application_properties, body }));
    return;
  }
  const event = JSON.parse(body); // Koji's own dictionaries
  const props = Object.entries(message.application_properties).map(([key, value]) => `${key}=${value}`);
  console.log(topic, props.join(', '), 'with', ...Object.keys(event));
}

const read = (file) => file && fs.readFileSync(file);
const url = new URL(args.url);
const tls = url.protocol === 'amqps:';
const connection = rhea.create_container({ id: args.durable || rhea.generate_uuid() }).connect({
  host: url.hostname,
  port: url.port || (tls ? 5671 : 5672),
  transport: tls ? 'tls' : 'tcp',
  ca: read(args.cacert),
  cert: read(args.cert),
  key: read(args.key || args.cert),
  enable_sasl_external: args.sasl === 'external',
  username: args.sasl === 'plain' ? args.user : args.sasl === 'anonymous' ? 'anonymous' : undefined,
  password: args['password-file'] && String(read(args['password-file'])).trim(),
  idle_time_out: 30000, // without an answer for so long the connection is dead
  max_reconnect_delay: 10000,
});
const receiver = connection.open_receiver({
  name: args.durable, // a durable subscription is known by client and link name
  source: {
    address: args.address,
    capabilities: args.topic ? ['topic'] : undefined,
    durable: args.durable ? 2 : 0,
    expiry_policy: args.durable ? 'never' : undefined,
  },
  autoaccept: false,
  credit_window: 0,
});

const seen = new Set();
let handled = 0;
let opened = 0; // how often the link was
let work = Promise.resolve();

async function onMessage({ message, delivery }, link) {
  if (args.count > 0 && handled >= args.count) return; // it was on its way already; unacknowledged, it comes again
  const id = message.message_id;
  if (id === undefined || !seen.has(id)) {
    // RabbitMQ 4 tells the topic in an annotation, ActiveMQ in `to`, RabbitMQ 3 not at all.
    const topic = (message.message_annotations || {})['x-routing-key'] || message.to || args.address;
    const body = typeof message.body === 'string' ? message.body : String(message.body.content);
    await handle(topic, message, body);
    handled++;
    seen.add(id);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
  }
  if (link !== opened) return; // it came over a connection that is gone: the broker sends it again
  delivery.accept();
  receiver.add_credit(1);
  if (handled === args.count) connection.close();
}

receiver.on('receiver_open', () => {
  console.error('subscribed to', args.address);
  opened++;
  receiver.add_credit(100); // so many may be on their way or waiting
});
receiver.on('message', (context) => { // one after the other
  const link = opened;
  work = work.then(() => onMessage(context, link));
});
receiver.on('receiver_error', () => fail(receiver.error));
connection.on('connection_error', () => fail(connection.error));
connection.on('error', (error) => {
  if (handled === args.count) process.exit(); // what was on its way when the connection closed
  throw error;
});
connection.on('disconnected', ({ error, reconnecting }) => {
  console.error('disconnected:', String(error || 'the connection ended'));
  if (!reconnecting) process.exitCode = 1;
});

function fail(error) {
  console.error('error:', error.condition, error.description);
  process.exit(1);
}
