import { Anchor, Badge, Box, Button, Grid, Group, Stack, ScrollArea, SegmentedControl, Table, Text, Textarea, Title } from '@mantine/core'
import { IconPlugConnected, IconSend } from '@tabler/icons-react'
import { useMutation, useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'
import { ui, type Endpoint } from '../api'
import { ago, duration, headline, instant } from '../format'
import { Command, Empty, Fact, PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'

const FIRST_ENDPOINT = `shallop apply -f - <<'END'
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: iris}
spec:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: /path/to/model
END`

function useEndpoints() {
  return useQuery({ queryKey: ['endpoints'], queryFn: ui.endpoints, refetchInterval: 5000 })
}

const READINESS = { True: ['Ready', 'green'], False: ['Not ready', 'red'], Unknown: ['Starting', 'yellow'] } as const

function Readiness({ endpoint }: { endpoint: Endpoint }) {
  const [text, color] = READINESS[endpoint.ready]
  return <Badge variant="light" color={color} tt="none" fw={600} title={endpoint.reason} style={{ flex: 'none' }}>{text}</Badge>
}

export function Endpoints() {
  const endpoints = useEndpoints()
  const rows = endpoints.data?.endpoints
  return (
    <>
      <PageTitle>Endpoints</PageTitle>
      {endpoints.error && <Problem error={endpoints.error} />}
      {endpoints.isPending && <Waiting />}
      {rows && rows.length === 0 && (
        <Empty icon={<IconPlugConnected size={36} stroke={1.3} />} title="Nothing is served yet" command={FIRST_ENDPOINT}>
          Declare an InferenceService: shallop finds the runtime, loads the model and gives it an address for predictions.
        </Empty>
      )}
      {rows && rows.length > 0 && (
        <ScrollArea className="surface">
          <Table verticalSpacing={9} horizontalSpacing="md" highlightOnHover miw={720} data-testid="endpoints">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Endpoint</Table.Th><Table.Th w={150}>State</Table.Th><Table.Th w={110}>Model</Table.Th><Table.Th>URL</Table.Th><Table.Th w={120}>Created</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {rows.map((row) => (
                <Table.Tr key={`${row.namespace}/${row.name}`} className="row" onClick={() => (window.location.hash = link.endpoint(row.namespace, row.name))}>
                  <Table.Td>
                    <a href={link.endpoint(row.namespace, row.name)}>{row.name}</a>
                    <Text size="xs" c="dimmed">{row.namespace}</Text>
                  </Table.Td>
                  <Table.Td><Readiness endpoint={row} /></Table.Td>
                  <Table.Td>{row.format || '–'}</Table.Td>
                  <Table.Td>
                    {row.ready === 'True'
                      ? <span className="mono wrap">{row.url}</span>
                      : <Text size="sm" c="dimmed" lineClamp={2}>{headline(row.message) || '–'}</Text>}
                  </Table.Td>
                  <Table.Td><Text size="sm" c="dimmed">{ago(instant(row.created_at))}</Text></Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </ScrollArea>
      )}
    </>
  )
}

function curl(endpoint: Endpoint, protocol: string): string {
  const path = protocol === 'v2' ? `v2/models/${endpoint.name}/infer` : `v1/models/${endpoint.name}:predict`
  return `curl -s ${endpoint.url}/${path} \\\n  -H 'Content-Type: application/json' -d @request.json`
}

function TryIt({ endpoint }: { endpoint: Endpoint }) {
  const [protocol, setProtocol] = useState('v1')
  const [edited, setEdited] = useState<Record<string, string>>({})
  const example = useQuery({
    queryKey: ['example', endpoint.namespace, endpoint.name, protocol],
    queryFn: () => ui.example(endpoint.namespace, endpoint.name, protocol),
    enabled: endpoint.ready === 'True',
    staleTime: Infinity,
  })
  const text = edited[protocol] ?? (example.data ? pretty(example.data.body) : '')
  const problem = jsonProblem(text)
  const send = useMutation({ mutationFn: () => ui.predict(endpoint.namespace, endpoint.name, protocol, text) })
  const { reset } = send
  useEffect(() => reset(), [protocol, reset])
  const ready = endpoint.ready === 'True'
  return (
    <Stack className="surface" p="md" gap="sm">
      <Group justify="space-between">
        <Title order={2} fz={17}>Try it</Title>
        <SegmentedControl
          size="xs"
          aria-label="Protocol"
          value={protocol}
          onChange={setProtocol}
          data={[{ value: 'v1', label: 'V1' }, { value: 'v2', label: 'Open Inference V2' }]}
        />
      </Group>
      <Textarea
        label="Request"
        description={example.data?.source}
        value={text}
        error={text && problem}
        autosize
        minRows={6}
        maxRows={18}
        spellCheck={false}
        styles={{ input: { fontFamily: 'var(--mantine-font-family-monospace)', fontSize: 12.5 } }}
        onChange={(event) => setEdited({ ...edited, [protocol]: event.currentTarget.value })}
        onKeyDown={(event) => {
          if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && ready && !problem) send.mutate()
        }}
      />
      <Group justify="space-between">
        <Text size="xs" c="dimmed">{ready ? 'Ctrl + Enter sends' : 'The endpoint is not ready: nothing can answer yet.'}</Text>
        <Button leftSection={<IconSend size={16} />} disabled={!ready || !!problem} loading={send.isPending} onClick={() => send.mutate()}>Send</Button>
      </Group>
      {send.error && <Problem error={send.error} title="The request did not get through" />}
      {send.data && (
        <Box aria-live="polite" data-testid="answer">
          <Group gap="xs" mb={6}>
            <Text size="sm" fw={600}>Answer</Text>
            <Badge variant="light" tt="none" color={send.data.status < 400 ? 'green' : 'red'}>{send.data.status}</Badge>
            <Badge variant="light" tt="none" color="gray">{duration(send.data.latency_ms)}</Badge>
          </Group>
          <pre className="log" style={{ maxHeight: 320, minHeight: 40 }} tabIndex={0}>{pretty(send.data.body)}</pre>
        </Box>
      )}
    </Stack>
  )
}

/** JSON with short arrays on one line, so that a row of a matrix reads as a row. */
function pretty(value: unknown): string {
  if (typeof value === 'string') return value
  const text = JSON.stringify(value, null, 2)
  return text.replace(/\[\s+((?:[^[\]{}"]|"[^"]*")*?)\s+\]/g, (whole, inner: string) => {
    const line = `[${inner.replace(/\s*\n\s*/g, ' ')}]`
    return line.length <= 88 ? line : whole
  })
}

function jsonProblem(text: string): string | undefined {
  try {
    JSON.parse(text)
    return undefined
  } catch (error) {
    return `Not JSON: ${(error as Error).message}`
  }
}

export function EndpointPage({ namespace, name }: { namespace: string; name: string }) {
  const endpoints = useEndpoints()
  const endpoint = endpoints.data?.endpoints.find((row) => row.namespace === namespace && row.name === name)
  if (endpoints.error) return <Problem error={endpoints.error} />
  if (endpoints.isPending) return <Waiting />
  if (!endpoint) {
    return <Empty title="There is no such endpoint" command={`kubectl get inferenceservices -A`}>InferenceService {namespace}/{name} does not exist (any more).</Empty>
  }
  return (
    <>
      <PageTitle above={<><a className="plain" href="#/endpoints">Endpoints</a> / {namespace}</>} aside={<Readiness endpoint={endpoint} />}>{name}</PageTitle>
      {endpoint.ready !== 'True' && endpoint.message && (
        <Box mb="md"><Problem error={new Error(endpoint.message)} title={endpoint.ready === 'False' ? 'Why it is not ready' : 'What it waits for'} /></Box>
      )}
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 7 }}><TryIt endpoint={endpoint} /></Grid.Col>
        <Grid.Col span={{ base: 12, lg: 5 }}>
          <Stack className="surface" p="md" gap="sm">
            <Title order={2} fz={17}>About</Title>
            <Fact name="URL">{endpoint.url ? <span className="mono">{endpoint.url}</span> : 'none yet'}</Fact>
            <Fact name="Model">{[endpoint.format, endpoint.storage].filter(Boolean).join(' from ') || '–'}</Fact>
            <Fact name="Runtime">{endpoint.runtime || 'chosen when it starts'}</Fact>
            <Fact name="Pods">
              {endpoint.pods.length === 0 ? 'none' : endpoint.pods.map((pod) => (
                <Group key={pod.name} gap={6}>
                  <span className="mono">{pod.name}</span>
                  <Badge size="sm" variant="light" tt="none" color={pod.ready ? 'green' : 'yellow'}>{pod.ready ? 'Ready' : pod.phase}</Badge>
                  {pod.restarts > 0 && <Text span size="xs" c="dimmed">{pod.restarts} restarts</Text>}
                </Group>
              ))}
            </Fact>
            {endpoint.url && <Fact name="From a terminal"><Command>{curl(endpoint, 'v1')}</Command></Fact>}
            <Anchor size="sm" href="#/models">Models in the registry</Anchor>
          </Stack>
        </Grid.Col>
      </Grid>
    </>
  )
}
