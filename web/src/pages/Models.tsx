import { Anchor, Badge, Box, Group, Stack, Table, Text } from '@mantine/core'
import { IconCube } from '@tabler/icons-react'
import { useQuery } from '@tanstack/react-query'
import { registry, type ModelVersion, type Properties, type RegisteredModel } from '../api'
import { ago, number, show } from '../format'
import { Empty, PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'

const FIRST_MODEL = `pip install model-registry
python - <<'END'
from model_registry import ModelRegistry

registry = ModelRegistry("${window.location.protocol}//${window.location.hostname}", ${window.location.port || 80}, author="me", is_secure=False)
registry.register_model("iris", "/path/to/model", version="1",
                        model_format_name="sklearn", model_format_version="1")
END`

/** The plain value of a custom property. */
function plain(property: Properties[string]): unknown {
  const value = Object.entries(property).find(([key]) => key !== 'metadataType')?.[1]
  const text = property.metadataType === 'MetadataIntValue' || property.metadataType === 'MetadataDoubleValue'
  return text ? Number(value) : value
}

/** A property that holds the id of a run leads to it. */
function Property({ name, value }: { name: string; value: unknown }) {
  const text = show(value)
  const isRun = /run.?id/i.test(name) && /^[0-9a-f-]{36}$/.test(text)
  return isRun ? <Anchor size="sm" className="mono" href={link.run(text)}>{text.slice(0, 8)}</Anchor> : <span className="wrap">{text}</span>
}

function Version({ version }: { version: ModelVersion }) {
  const { data } = useQuery({ queryKey: ['version-artifacts', version.id], queryFn: () => registry.artifacts(version.id) })
  const models = data?.items.filter((item) => item.artifactType === 'model-artifact') ?? []
  const measured = data?.items.filter((item) => item.artifactType === 'metric') ?? []
  const properties = Object.entries(version.customProperties ?? {}).map(([name, value]) => [name, plain(value)] as const)
  const metrics = [...measured.map((item) => [item.name, Number(item.value)] as const), ...properties.filter(([, value]) => typeof value === 'number')]
  const rest = properties.filter(([, value]) => typeof value !== 'number' && value !== '')
  return (
    <Table.Tr style={{ verticalAlign: 'top' }}>
      <Table.Td>
        <Text size="sm" fw={600}>{version.name}</Text>
        <Text size="xs" c="dimmed">{version.author}</Text>
      </Table.Td>
      <Table.Td>
        {metrics.map(([name, value]) => (
          <Group key={name} gap={6} wrap="nowrap"><Text size="sm" c="dimmed">{name}</Text><Text size="sm" fw={600}>{number(value as number)}</Text></Group>
        ))}
        {metrics.length === 0 && <Text size="sm" c="dimmed">–</Text>}
      </Table.Td>
      <Table.Td>
        {models.map((model) => (
          <Box key={model.id} mb={4}>
            {model.modelFormatName && <Badge variant="light" tt="none" mr={6}>{model.modelFormatName} {model.modelFormatVersion}</Badge>}
            <Text span className="mono wrap">{model.uri}</Text>
          </Box>
        ))}
        {rest.map(([name, value]) => (
          <Text key={name} size="sm"><Text span c="dimmed">{name}: </Text><Property name={name} value={value} /></Text>
        ))}
      </Table.Td>
      <Table.Td><Text size="sm" c="dimmed" style={{ whiteSpace: 'nowrap' }}>{ago(Number(version.createTimeSinceEpoch))}</Text></Table.Td>
    </Table.Tr>
  )
}

function Model({ model }: { model: RegisteredModel }) {
  const versions = useQuery({ queryKey: ['versions', model.id], queryFn: () => registry.versions(model.id) })
  return (
    <section className="surface" aria-label={model.name}>
      <Group px="md" py="sm" justify="space-between">
        <Box>
          <Group gap="xs">
            <Text component="a" className="plain" href={link.model(model.id)} fw={650} fz={16}>{model.name}</Text>
            {model.state === 'ARCHIVED' && <Badge color="gray" variant="light" tt="none">archived</Badge>}
          </Group>
          {model.description && <Text size="sm" c="dimmed">{model.description}</Text>}
        </Box>
        <Text size="sm" c="dimmed">changed {ago(Number(model.lastUpdateTimeSinceEpoch))}</Text>
      </Group>
      {versions.error && <Problem error={versions.error} />}
      {versions.data && versions.data.items.length === 0 && <Text px="md" pb="md" size="sm" c="dimmed">No version yet.</Text>}
      {versions.data && versions.data.items.length > 0 && (
        <Table.ScrollContainer minWidth={640}>
          <Table horizontalSpacing="md" verticalSpacing="xs">
            <Table.Thead>
              <Table.Tr><Table.Th w={150}>Version</Table.Th><Table.Th w={240}>Metrics</Table.Th><Table.Th>Model and properties</Table.Th><Table.Th w={120}>Registered</Table.Th></Table.Tr>
            </Table.Thead>
            <Table.Tbody>{versions.data.items.map((version) => <Version key={version.id} version={version} />)}</Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
    </section>
  )
}

/** The registry: every model with its versions, or one of them. */
export function Models({ model }: { model?: string }) {
  const models = useQuery({ queryKey: ['models'], queryFn: registry.models, refetchInterval: 5000 })
  const shown = models.data?.items.filter((item) => model === undefined || item.id === model)
  return (
    <>
      <PageTitle above={model && <a className="plain" href="#/models">Models</a>}>{model ? (shown?.[0]?.name ?? 'Model') : 'Models'}</PageTitle>
      {models.error && <Problem error={models.error} />}
      {models.isPending && <Waiting />}
      {shown && shown.length === 0 && (
        <Empty icon={<IconCube size={36} stroke={1.3} />} title={model ? 'There is no such model' : 'No models yet'} command={model ? undefined : FIRST_MODEL}>
          {model ? 'It may be in another registry.' : 'Register what you have trained: versions, metrics and the run that made them stay together, and an endpoint can serve it by name.'}
        </Empty>
      )}
      <Stack gap="md">{shown?.map((item) => <Model key={item.id} model={item} />)}</Stack>
    </>
  )
}
