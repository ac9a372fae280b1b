// Runs subscriptions with graphql-ws: node graphql_client.js ws://127.0.0.1:8000/graphql
'use strict';

const { createClient } = require('graphql-ws');
const WebSocket = require('ws');

const [url] = process.argv.slice(2);

function connect(options) {
  return createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0, lazy: false, onNonLazyError: () => {}, ...options });
}

function subscribe(client, query, to) {
  return new Promise((resolve, reject) => {
    const counts = [];
    client.subscribe({ query, variables: { to } }, {
      next: (result) => counts.push(result.data.count),
      error: reject,
      complete: () => resolve(counts),
    });
  });
}

async function main() {
  let pong;
  const ponged = new Promise((resolve) => { pong = resolve; });
  const client = connect({ keepAlive: 100, on: { pong: (received) => received && pong() } });
  const query = 'subscription ($to: Int) { count(to: $to) }';
  const results = await Promise.all([subscribe(client, query, 3), subscribe(client, query, 5)]);
  console.log(JSON.stringify(results));
  await subscribe(client, 'subscription { other }').catch((errors) => console.log(errors[0].message));
  await ponged;
  console.log('pong');
  await client.dispose();
  const refused = connect({ connectionParams: { token: 'wrong' } });
  await subscribe(refused, query, 1).catch((event) => console.log(event.code, event.reason));
}

main().then(() => process.exit(0), (error) => { console.log(error); process.exit(1); });
