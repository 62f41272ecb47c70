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

const seen = new Set();
let handled = 0;
const finished = () => args.count > 0 && handled >= args.count;

async function pass(message) {
  const id = message.message_id;
  if (id !== undefined && seen.has(id)) return;
  // RabbitMQ 4 tells the topic in an annotation, ActiveMQ in `to`, RabbitMQ 3 and Artemis not at all.
  const topic = (message.message_annotations || {})['x-routing-key'] || message.to || args.address;
  await handle(topic, message, typeof message.body === 'string' ? message.body : String(message.body.content));
  handled++;
  seen.add(id);
  if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
}

const read = (file) => file && fs.readFileSync(file);
const url = new URL(args.url);
const tls = url.protocol === 'amqps:';
const container = rhea.create_container({ id: args.durable || rhea.generate_uuid() });
let work = Promise.resolve(); // one message after the other

// subscribe lasts as long as one connection.
function subscribe() {
  const connection = container.connect({
    host: url.hostname,
    port: url.port || (tls ? 5671 : 5672),
    transport: tls ? 'tls' : 'tcp',
    ca: read(args.cacert),
    cert: read(args.cert),
    key: read(args.key || args.cert),
    enable_sasl_external: args.sasl === 'external',
    username: { plain: args.user, anonymous: 'anonymous' }[args.sasl],
    password: args['password-file'] && String(read(args['password-file'])).trim(),
    idle_time_out: 30000, // without an answer for so long the connection is dead
    reconnect: false,
  });
  const receiver = connection.open_receiver({
    name: args.durable, // a durable subscription is known by container id and link name
    source: {
      address: args.address,
      capabilities: args.topic ? ['topic'] : undefined,
      durable: args.durable ? 2 : 0,
      expiry_policy: args.durable ? 'never' : undefined,
    },
    autoaccept: false,
    credit_window: 0,
  });
  let over = false;

  receiver.on('receiver_open', () => {
    console.error('subscribed to', args.address);
    receiver.add_credit(100); // so many may be on their way or waiting
  });
  receiver.on('message', ({ message, delivery }) => {
    work = work.then(async () => {
      if (finished()) return; // it was on its way already; unacknowledged, it comes again
      await pass(message);
      if (over) return; // it came over a connection that is gone: the broker sends it again
      delivery.accept();
      receiver.add_credit(1);
      if (finished()) connection.close();
    });
  });
  const again = (event) => {
    if (over || finished()) return;
    over = true;
    const why = event.error || receiver.error || receiver.session.error || connection.error || event;
    console.error('disconnected:', why.condition || 'connection', why.description || why.message || 'closed');
    if (connection.is_open()) connection.close();
    setTimeout(subscribe, 1000);
  };
  for (const event of ['receiver_close', 'receiver_error', 'session_close', 'session_error', 'connection_close',
    'connection_error', 'disconnected', 'error']) connection.on(event, again);
}

subscribe();
