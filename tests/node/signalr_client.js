// Calls methods of a SignalR hub, and is called: node signalr_client.js http://127.0.0.1:8000/signalr
'use strict';

const { HttpTransportType, HubConnectionBuilder, LogLevel } = require('@microsoft/signalr');

const [url] = process.argv.slice(2);

async function connect() {
  const connection = new HubConnectionBuilder()
    .withUrl(url, { skipNegotiation: true, transport: HttpTransportType.WebSockets })
    .configureLogging(LogLevel.Error)
    .build();
  connection.keepAliveIntervalInMilliseconds = 100;
  connection.serverTimeoutInMilliseconds = 2000; // Only its Pings get an answer, so it lives by them.
  await connection.start();
  return connection;
}

async function main() {
  const first = await connect();
  const second = await connect();
  const said = new Promise((resolve) => second.on('said', (...words) => resolve(words.join(' '))));
  console.log(await first.invoke('Add', 1, 2, 3));
  await first.invoke('Missing').catch((error) => console.log(error.message));
  await first.send('Say', 'hello', 'everybody');
  console.log(await said);
  const items = [];
  await new Promise((resolve, reject) => {
    first.stream('Count', 10, 15).subscribe({ next: (item) => items.push(item), error: reject, complete: resolve });
  });
  console.log(items.join(' '));
  await new Promise((resolve) => setTimeout(resolve, 2500)); // More than serverTimeoutInMilliseconds.
  console.log(first.state, second.state);
  await Promise.all([first.stop(), second.stop()]);
}

main().then(() => process.exit(0), (error) => { console.log(error); process.exit(1); });
